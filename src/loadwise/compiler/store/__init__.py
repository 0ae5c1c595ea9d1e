"""Packages that outlive the process: private, authenticated, bounded, shared safely by several servers."""

from loadwise.compiler.store.store import PackageStore

__all__ = ["PackageStore"]
