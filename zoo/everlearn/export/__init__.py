"""What leaves the house: one ONNX file that predicts what the server predicts, and a card that says what it is."""
