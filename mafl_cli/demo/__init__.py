"""The model that ships with mafl: `model.ts`, what it expects (`model.toml`), and where it is from (`README.md`)."""
