"""A site: owns its records, keys, privacy ledger and GPU, and lets none of them leave."""
