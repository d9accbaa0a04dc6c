"""The control plane: agents over SSH, the coordinator, the journal. No torch."""
