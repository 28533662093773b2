-- Puts an entry under a lease and returns all entries whose leases last: pools' demand, controllers, workers.
--
-- KEYS  1 entries: a hash by name  2 leases: their ends in microseconds, by name
-- ARGV  none to only look; or  1 name  2 entry  3 TTL in milliseconds
-- Returns names and entries in turn.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

if #ARGV > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('ZADD', KEYS[2], now + ARGV[3] * 1000, ARGV[1])
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, math.max(tonumber(ARGV[3]), redis.call('PTTL', key)))
  end
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
return redis.call('HGETALL', KEYS[1])
