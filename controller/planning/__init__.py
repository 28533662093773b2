"""What a request may spend: pure functions of the request, the policy and what was learnt, with the clock
passed in.
"""
