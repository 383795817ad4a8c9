"""Regularisers: penalties on what would be forgotten. One file each, found by its name. They need torch."""
