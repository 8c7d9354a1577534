"""The same distillation steps in this project and in other libraries."""
