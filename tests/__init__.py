"""Tests of Dues, on real servers; the folders mirror the tree."""
