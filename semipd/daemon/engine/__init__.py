"""The engine process as the daemon sees it: started, watched, replaced."""
