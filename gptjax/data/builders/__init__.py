"""Builders of TensorFlow Datasets for corpora that come as Python packages.

Importing one of the modules imports TensorFlow: do it inside a function. Both
builders read what is installed, so they need no network.
"""
