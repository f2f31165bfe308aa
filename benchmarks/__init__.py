"""Measurements that stand behind the documentation's figures; not part of the installed package."""
