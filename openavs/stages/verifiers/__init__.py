"""Verifiers: does a segment look like its phrase?"""
