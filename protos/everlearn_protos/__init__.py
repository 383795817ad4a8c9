"""The wire: `.proto` files, the code generated from them (committed, drift-tested), and the array codec."""
