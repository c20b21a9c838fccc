"""One module per subcommand of `videotrain`: options and printing; what they call lies in the other rooms."""
