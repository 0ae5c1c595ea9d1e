"""Contract suites and fakes that ship: real or fake, every part passes the same tests."""
