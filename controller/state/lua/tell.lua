-- What a controller tells of a tenant, and what all controllers know of it.
-- controller/state/store.py, TenantNews, explains the arguments.
--
-- KEYS  1 rate: TAT of requests  2 tokens: TAT of tokens  3 running: leases by their end
--       4 shared: a hash of served and offset  5 the number of the last news from this controller
-- ARGV  1 number  2 served  3 served_floor  4 offset_step  5 offset  6 its least  7 its most
--       8 rate_us  9 tokens_us  10 TTL of leases in microseconds  11 how many are held  12... held, then released
-- Returns served and offset as text, which keeps their fraction.

local SHARED_TTL = 7 * 86400000
local NUMBER_TTL = 86400000
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function charge(key, cost)
  if cost == 0 then
    return
  end
  local tat = tonumber(redis.call('GET', key) or '0')
  if cost < 0 then
    tat = tat + cost
  else
    tat = math.max(tat, now) + cost
  end
  if tat > now then
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
  else
    redis.call('DEL', key)
  end
end

local known = redis.call('HMGET', KEYS[4], 'served', 'offset')
local served = math.max(tonumber(known[1] or '0'), tonumber(ARGV[3]))
local offset = tonumber(known[2] or ARGV[5])

local number = tonumber(ARGV[1])
if number > tonumber(redis.call('GET', KEYS[5]) or '0') then
  redis.call('SET', KEYS[5], ARGV[1], 'PX', NUMBER_TTL)
  served = served + tonumber(ARGV[2])
  offset = math.min(math.max(offset + tonumber(ARGV[4]), tonumber(ARGV[6])), tonumber(ARGV[7]))
  charge(KEYS[1], tonumber(ARGV[8]))
  charge(KEYS[2], tonumber(ARGV[9]))
end

served, offset = string.format('%.17g', served), string.format('%.17g', offset)
redis.call('HSET', KEYS[4], 'served', served, 'offset', offset)
redis.call('PEXPIRE', KEYS[4], SHARED_TTL)

local lease_ttl, held = tonumber(ARGV[10]), tonumber(ARGV[11])
for i = 12, 11 + held do
  redis.call('ZADD', KEYS[3], now + lease_ttl, ARGV[i])
end
for i = 12 + held, #ARGV do
  redis.call('ZREM', KEYS[3], ARGV[i])
end
if held > 0 then
  redis.call('PEXPIRE', KEYS[3], math.ceil(lease_ttl / 1000) + 1000)
end
return {served, offset}
