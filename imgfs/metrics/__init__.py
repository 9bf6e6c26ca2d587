"""Figures that grow or stand, and their one text form. Which figures there are is each room's own business."""
