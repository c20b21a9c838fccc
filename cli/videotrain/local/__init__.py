"""A whole run on this machine: session, chaos and display of `videotrain local`."""
