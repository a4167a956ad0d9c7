"""This package in other people's libraries; each module needs that library and no more."""
