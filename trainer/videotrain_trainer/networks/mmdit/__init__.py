"""The MMDiT and its published weight layouts."""
