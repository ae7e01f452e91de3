"""Text with meaning: lines, charts and numbers. No colours, no terminal."""
