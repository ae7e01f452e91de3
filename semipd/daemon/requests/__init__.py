"""A request from its body to its last token: checked, admitted, generated, carried over an engine's crash."""
