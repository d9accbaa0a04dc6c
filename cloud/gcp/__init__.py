"""Google Compute Engine: spot VMs by bulkInsert, the API's word for what lives, nothing left in the end."""
