"""Amazon EC2 spot instances: CreateFleet of type instant, and a replacement loop of our own."""
