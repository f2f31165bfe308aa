"""Actor, critics and policy: SB3's contract."""
