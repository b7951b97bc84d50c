"""Fine-tuning: networks that are trained further, as scikit-learn classifiers."""
