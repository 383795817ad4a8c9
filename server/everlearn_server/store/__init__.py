"""What the server keeps: catalog (what is declared and released), ledger (what was learned), blobs (large bytes)."""
