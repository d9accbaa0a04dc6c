"""This machine as a cloud: a fleet of process groups behind SSH servers, driven by a trace."""
