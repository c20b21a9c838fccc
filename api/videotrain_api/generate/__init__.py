"""Writers of every generated file of the repository; not needed at run time."""
