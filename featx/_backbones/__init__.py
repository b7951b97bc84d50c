"""Backbones: which networks exist, where their weights come from, what they compute."""
