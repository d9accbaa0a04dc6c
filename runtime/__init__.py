"""What trains: planning, replay, control and the engine."""
