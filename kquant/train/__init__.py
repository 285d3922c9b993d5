"""Training-time compression: each file is one method; what it adds are layers and variables of the model."""
