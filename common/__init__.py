"""What a site and the server must agree on: the plan, records, labels, the model and the wire."""
