"""Commands for people: `convert`, `export` and others. Each module adds its options without importing torch."""
