-- Whether a request of a tenant may come in: checks all limits, then counts in all or in none.
-- controller/state/bucket.py explains the arithmetic; times are whole microseconds of the server's clock.
--
-- KEYS  1 rate: TAT of requests  2 tokens: TAT of tokens  3 running: leases by their end
-- ARGV  1 lease  2 its TTL  3 limit of leases  4 cost and 5 window of the rate  6, 7 the same of tokens
--       8... leases that ended.  A limit or window of -1 sets none.
-- Returns the limit that is reached (0 none, 1 rate, 2 tokens, 3 leases), the wait, and the server's clock.

local MAX_DEBT = 3600000000
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local lease_ttl, most = tonumber(ARGV[2]), tonumber(ARGV[3])

for i = 8, #ARGV do
  redis.call('ZREM', KEYS[3], ARGV[i])
end

local function check(key, cost, window)
  if window < 0 then
    return 0, now
  end
  local tat = tonumber(redis.call('GET', key) or '0')
  tat = math.min(math.max(tat, now), now + window + MAX_DEBT)
  return math.max(0, tat - now + math.min(cost, window) - window), tat + cost
end

local rate_window, tokens_window = tonumber(ARGV[5]), tonumber(ARGV[7])
local rate_wait, rate_tat = check(KEYS[1], tonumber(ARGV[4]), rate_window)
local tokens_wait, tokens_tat = check(KEYS[2], tonumber(ARGV[6]), tokens_window)
if rate_wait > 0 or tokens_wait > 0 then
  return {rate_wait >= tokens_wait and 1 or 2, math.max(rate_wait, tokens_wait), now}
end

if most >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= most then
    return {3, 0, now}
  end
  redis.call('ZADD', KEYS[3], now + lease_ttl, ARGV[1])
  redis.call('PEXPIRE', KEYS[3], math.ceil(lease_ttl / 1000) + 1000)
end

local function keep(key, tat, window)
  if window >= 0 then
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
  end
end

keep(KEYS[1], rate_tat, rate_window)
keep(KEYS[2], tokens_tat, tokens_window)
return {0, 0, now}
