-- Takes an entry out before its lease ends.
--
-- KEYS  1 entries: a hash by name  2 leases: their ends, by name
-- ARGV  1 name

redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
