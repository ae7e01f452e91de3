"""What arrives in a simulation: recorded and generated traces, classes of service, prompts."""
