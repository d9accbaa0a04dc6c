"""What is rented: instances, notices, and the providers that supply them."""
