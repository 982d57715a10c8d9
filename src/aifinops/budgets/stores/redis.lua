-- Operations of a budget store, each in one step. What they do is told in base.py and accounts.py; this is the same in Lua.
--
-- A server does not take back what a script has written when the script fails. So everything is read, checked and worked out
-- first, and then written with commands that cannot fail; the sorted sets, which are not read before, are written first.
--
-- KEYS (all in one slot)
--   accounts      key of a node -> "born spent reserved overrun forfeited fired"
--   nodes         key of a node -> what it says of itself, JSON
--   reservations  id -> JSON        due   ids of open ones, by the end of their lease
--   entries       id -> JSON        notes key -> "ends text"
--   old           what is over, by when it may be forgotten: "r:" id, "e:" id, "a:" key of a node, "n:" key of a note
--   seen          of one client: how many of its operations wrote, and the last answers to them
-- ARGV: the operation, JSON; then what each node says of itself, JSON. Amounts are decimal text, moments of leases milliseconds of
-- the server's clock.

local KEPT = 3600 * 1000 -- a reservation that is over is known for so long after its lease
local LATE = 7 * 86400 * 1000 -- the truth about what was forfeited, and what belongs to an old window, may come for so long
local DAY = 86400 * 1000
local SEEN = 8 * DAY -- a client that is silent for longer than six of these days does not expect to be known
local SLOTS = 256 -- answers kept for one client
local SWEEP_MOST, TIDY_MOST, TIDY_EVERY = 500, 256, 64
local MANY = 1000 -- fields in one command: Lua's stack has an end

local FIGURES = { 'spent', 'reserved', 'overrun', 'forfeited', 'fired' }
local MOVES = {
  mark_sent = { held = 'sent' },
  settle = { held = 'settled', sent = 'settled', forfeited = 'settled' },
  release = { held = 'released', sent = 'released', forfeited = 'released' },
  extend = { held = 'held', sent = 'sent' },
  draw = { held = 'held', sent = 'sent' },
  expire = { held = 'forfeited', sent = 'forfeited' },
}

local key, wrote, moment -- of the operation that runs

-- integers ---------------------------------------------------------------------------------------------------------------

-- A number of Lua is a double, exact up to 2^53. Two of them, the lower one of ten digits, are exact up to 10^25.
local BASE = 1e10
local ZERO = { 0, 0 }

local function make(high, low)
  if low >= BASE then return { high + 1, low - BASE } end
  if low < 0 then return { high - 1, low + BASE } end
  return { high, low }
end

local function plus(a, b) return make(a[1] + b[1], a[2] + b[2]) end

local function minus(a, b) return make(a[1] - b[1], a[2] - b[2]) end

local function less(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end

local function most(a, b) return less(a, b) and b or a end

local function int(text)
  if string.byte(text) == 45 then return minus(ZERO, int(string.sub(text, 2))) end
  return { tonumber(string.sub(text, 1, -11)) or 0, tonumber(string.sub(text, -10)) }
end

local function digits(a) -- never of a negative one: nothing that is kept is below zero
  if type(a) == 'string' then return a end
  if a[1] == 0 then return string.format('%.0f', a[2]) end
  return string.format('%.0f%010.0f', a[1], a[2])
end

-- the server -------------------------------------------------------------------------------------------------------------

local function read(...) return redis.call(...) end

local function write(...)
  wrote = true
  return redis.call(...)
end

local function read_fields(where, fields)
  local values = {}
  for from = 1, #fields, MANY do
    local some = read('HMGET', where, unpack(fields, from, math.min(from + MANY - 1, #fields)))
    for i = 1, #some do values[from + i - 1] = some[i] end
  end
  return values
end

local function write_fields(where, flat)
  for from = 1, #flat, MANY do
    write('HSET', where, unpack(flat, from, math.min(from + MANY - 1, #flat)))
  end
end

local function now()
  if not moment then
    local time = read('TIME')
    moment = { ms = time[1] * 1000 + math.floor(time[2] / 1000), text = time[1] .. string.format('%06d', time[2]) }
  end
  return moment.ms
end

local function score(ms) return string.format('%.0f', ms) end

local function forget_at(what, ms) write('ZADD', key.old, score(ms), what) end

-- accounts ---------------------------------------------------------------------------------------------------------------

-- Figures are text until they are needed: of the parts of a rolling window most are not.
local function figure(account, name)
  local value = account[name]
  if type(value) == 'string' then
    value = int(value)
    account[name] = value
  end
  return value
end

local function add(account, name, amount) account[name] = plus(figure(account, name), amount) end

local function sum(account, name)
  local value = figure(account, name)
  for _, other in ipairs(account.beside) do value = plus(value, figure(other, name)) end
  return value
end

local function packed(account)
  local words = { account.born }
  for i, name in ipairs(FIGURES) do words[i + 1] = digits(account[name]) end
  return table.concat(words, ' ')
end

local function unpacked(node_key, text)
  local account = { key = node_key, text = text, beside = {} }
  account.born, account.spent, account.reserved, account.overrun, account.forfeited, account.fired =
    string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return account
end

-- Without a key it is kept nowhere: in the place of an account that was forgotten.
local function empty(node_key)
  return { key = node_key, born = '0', spent = '0', reserved = '0', overrun = '0', forfeited = '0', fired = '0', beside = {} }
end

local function keys_of(nodes)
  local keys = {}
  for i, node in ipairs(nodes) do keys[i] = node.key end
  return keys
end

-- The accounts of nodes, with what counts beside them.
local function load(nodes)
  local keys = keys_of(nodes)
  for _, node in ipairs(nodes) do
    for _, other in ipairs(node.also or {}) do keys[#keys + 1] = other end
  end
  local texts, found = read_fields(key.accounts, keys), {}
  for i, one in ipairs(keys) do
    if texts[i] and not found[one] then found[one] = unpacked(one, texts[i]) end
  end
  local accounts = {}
  for i, node in ipairs(nodes) do
    local account = found[node.key] or empty(node.key)
    for _, other in ipairs(node.also or {}) do
      if found[other] then table.insert(account.beside, found[other]) end
    end
    accounts[i] = account
  end
  return accounts
end

-- Those of a reservation: an account that was forgotten meanwhile, and made again, is not the one that it knew.
local function load_for(record, nodes)
  local accounts = load(nodes)
  for i, account in ipairs(accounts) do
    if account.born ~= record.born[i] then
      accounts[i] = empty()
      accounts[i].beside = account.beside
    end
  end
  return accounts
end

local function save(accounts)
  local flat = {}
  for _, account in ipairs(accounts) do
    if account.key then
      local text = packed(account)
      if text ~= account.text then
        table.insert(flat, account.key)
        table.insert(flat, text)
      end
    end
  end
  write_fields(key.accounts, flat)
end

-- Accounts that are new begin here, and what nodes say of themselves is renewed.
local function file(o, nodes, specs, accounts)
  local known, flat = read_fields(key.nodes, keys_of(nodes)), {}
  for i, node in ipairs(nodes) do
    if not accounts[i].text then
      now()
      accounts[i].born = moment.text
      if o.keep[i] > 0 then forget_at('a:' .. node.key, now() + o.keep[i] + LATE) end
    end
    if known[i] ~= specs[i] then
      table.insert(flat, node.key)
      table.insert(flat, specs[i])
    end
  end
  write_fields(key.nodes, flat)
end

-- What the caller needs to tell why there was no room; nothing when there is.
local function refused(nodes, accounts, amounts)
  local full = false
  for i, node in ipairs(nodes) do
    if node.limit ~= '' and less(ZERO, amounts[i]) then
      local taken = plus(sum(accounts[i], 'spent'), sum(accounts[i], 'reserved'))
      full = full or less(int(node.limit), plus(taken, amounts[i]))
    end
  end
  if not full then return nil end
  local figures = {}
  for i, account in ipairs(accounts) do
    figures[i] = { packed(account) }
    for j, other in ipairs(account.beside) do figures[i][j + 1] = packed(other) end
  end
  return figures
end

local function reached(node, account, tell)
  if #(node.marks or {}) == 0 then return end
  local spent, fired = sum(account, 'spent'), figure(account, 'fired')
  for _, other in ipairs(account.beside) do fired = most(fired, figure(other, 'fired')) end
  if not less(fired, spent) then return end
  for _, text in ipairs(node.marks) do
    local mark = int(text)
    if less(fired, mark) and not less(spent, mark) then
      tell(text, digits(spent))
      account.fired = mark
    end
  end
end

-- reservations -----------------------------------------------------------------------------------------------------------

local function same(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

local function ints(texts)
  local numbers = {}
  for i, text in ipairs(texts) do numbers[i] = int(text) end
  return numbers
end

local function answer(state, applied) return { state = state, applied = applied, crossed = {} } end

local function other(amounts) return { other = amounts } end

local function find(id)
  local text = read('HGET', key.reservations, id)
  return text and cjson.decode(text)
end

local function keep(id, record) write('HSET', key.reservations, id, cjson.encode(record)) end

local function lease(id, record, ttl)
  record.expires = now() + ttl
  write('ZADD', key.due, score(record.expires), id)
end

local function over(id, record)
  local known = record.state == 'forfeited' and LATE or KEPT
  write('ZREM', key.due, id)
  forget_at('r:' .. id, math.max(record.expires, now()) + known)
end

local function move(record, event)
  local before = record.state
  record.state = MOVES[event][before] or before
  return MOVES[event][before] ~= nil, before
end

-- What was forfeited is a hold again: its holder has come back with the truth.
local function revive(record, accounts)
  for i, account in ipairs(accounts) do
    local held = int(record.held[i])
    add(account, 'reserved', held)
    add(account, 'forfeited', minus(ZERO, held))
    -- A credit may have taken part of it out already: spent never falls below zero.
    account.spent = most(ZERO, minus(figure(account, 'spent'), held))
  end
end

-- Part of a hold becomes a cost.
local function pay(result, i, node, account, held, spent)
  add(account, 'reserved', minus(ZERO, held))
  add(account, 'spent', spent)
  if less(held, spent) then add(account, 'overrun', minus(spent, held)) end
  reached(node, account, function(mark, sofar) table.insert(result.crossed, { i, mark, sofar }) end)
end

local function tidy()
  for _, what in ipairs(read('ZRANGEBYSCORE', key.old, '-inf', score(now()), 'LIMIT', 0, TIDY_MOST)) do
    local kind, name = string.sub(what, 1, 1), string.sub(what, 3)
    local again = false
    if kind == 'r' then
      write('HDEL', key.reservations, name)
    elseif kind == 'e' then
      write('HDEL', key.entries, name)
    elseif kind == 'n' then
      write('HDEL', key.notes, name)
    else
      again = less(ZERO, figure(load({ { key = name } })[1], 'reserved'))
      if not again then
        write('HDEL', key.accounts, name)
        write('HDEL', key.nodes, name)
      end
    end
    if again then
      forget_at(what, now() + DAY)
    else
      write('ZREM', key.old, what)
    end
  end
end

local operations = {}

function operations.reserve(o, nodes, specs)
  local record = find(o.id)
  if record then
    if not (same(record.asked, o.amounts) and same(record.keys, keys_of(nodes))) then return other(record.asked) end
    return answer(record.state, false)
  end
  local accounts, amounts = load(nodes), ints(o.amounts)
  local figures = refused(nodes, accounts, amounts)
  if figures then
    file(o, nodes, specs, accounts)
    save(accounts)
    local result = answer(nil, false)
    result.figures = figures
    return result
  end
  record = { state = 'held', keys = keys_of(nodes), asked = o.amounts, held = o.amounts, actual = {}, step = '0', born = {} }
  lease(o.id, record, o.ttl)
  file(o, nodes, specs, accounts)
  for i, account in ipairs(accounts) do
    add(account, 'reserved', amounts[i])
    record.born[i] = account.born
  end
  save(accounts)
  keep(o.id, record)
  return answer('held', true)
end

function operations.mark_sent(o)
  local record = find(o.id)
  if not record then return answer(nil, false) end
  local applied = move(record, 'mark_sent')
  if applied then keep(o.id, record) end
  return answer(record.state, applied)
end

function operations.settle(o, nodes)
  local record = find(o.id)
  if not record then return answer(nil, false) end
  if not same(record.keys, keys_of(nodes)) then return other(record.held) end
  local actual = {}
  for i, amount in ipairs(o.amounts) do actual[i] = amount ~= '' and amount or record.held[i] end
  if record.state == 'settled' and not same(record.actual, actual) then return other(record.actual) end
  local applied, before = move(record, 'settle')
  local result = answer(record.state, applied)
  if not applied then return result end
  local accounts, spent, held = load_for(record, nodes), ints(actual), ints(record.held)
  if before == 'forfeited' then revive(record, accounts) end
  for i, node in ipairs(nodes) do pay(result, i, node, accounts[i], held[i], spent[i]) end
  record.actual = actual
  over(o.id, record)
  save(accounts)
  keep(o.id, record)
  return result
end

function operations.release(o, nodes)
  local record = find(o.id)
  if not record then return answer(nil, false) end
  if not same(record.keys, keys_of(nodes)) then return other(record.held) end
  local applied, before = move(record, 'release')
  if applied then
    local accounts = load_for(record, nodes)
    if before == 'forfeited' then revive(record, accounts) end
    for i, account in ipairs(accounts) do add(account, 'reserved', minus(ZERO, int(record.held[i]))) end
    over(o.id, record)
    save(accounts)
    keep(o.id, record)
  end
  return answer(record.state, applied)
end

function operations.extend(o, nodes)
  local record = find(o.id)
  if not record then return answer(nil, false) end
  if not same(record.keys, keys_of(nodes)) then return other(record.held) end
  local applied = move(record, 'extend')
  if not applied then return answer(record.state, false) end
  if o.amounts then
    local accounts, growth = load_for(record, nodes), {}
    for i, amount in ipairs(o.amounts) do growth[i] = minus(int(amount), int(record.held[i])) end
    local figures = refused(nodes, accounts, growth)
    if figures then
      local result = answer(record.state, false)
      result.figures, result.held = figures, record.held
      return result
    end
    lease(o.id, record, o.ttl)
    for i, account in ipairs(accounts) do add(account, 'reserved', growth[i]) end
    record.held = o.amounts
    save(accounts)
  else
    lease(o.id, record, o.ttl)
  end
  keep(o.id, record)
  return answer(record.state, true)
end

function operations.draw(o, nodes)
  local record = find(o.id)
  if not record then return answer(nil, false) end
  if not same(record.keys, keys_of(nodes)) then return other(record.held) end
  if not MOVES.draw[record.state] or not less(int(record.step), int(o.step)) then return answer(record.state, false) end
  local result, accounts = answer(record.state, true), load_for(record, nodes)
  local before, spent = ints(record.held), ints(o.spent)
  for i, node in ipairs(nodes) do pay(result, i, node, accounts[i], before[i], spent[i]) end
  result.figures = refused(nodes, accounts, ints(o.held))
  record.held = result.figures and o.least or o.held
  for i, account in ipairs(accounts) do add(account, 'reserved', int(record.held[i])) end
  record.step = o.step
  lease(o.id, record, o.ttl)
  save(accounts)
  keep(o.id, record)
  return result
end

function operations.sweep()
  local result = { swept = {}, crossed = {} }
  local late = read('ZRANGEBYSCORE', key.due, '-inf', score(now()), 'LIMIT', 0, SWEEP_MOST)
  result.more = #late == SWEEP_MOST
  table.sort(late)
  for _, id in ipairs(late) do
    local record = find(id)
    if record and move(record, 'expire') then
      local specs, nodes = read_fields(key.nodes, record.keys), {}
      for i, name in ipairs(record.keys) do nodes[i] = specs[i] and cjson.decode(specs[i]) or { key = name } end
      local accounts = load_for(record, nodes)
      for i, account in ipairs(accounts) do
        local held = int(record.held[i])
        add(account, 'reserved', minus(ZERO, held))
        add(account, 'forfeited', held)
        add(account, 'spent', held)
        reached(nodes[i], account, function(mark, sofar) table.insert(result.crossed, { specs[i], mark, sofar }) end)
      end
      over(id, record)
      save(accounts)
      keep(id, record)
      table.insert(result.swept, id)
    else
      write('ZREM', key.due, id)
    end
  end
  tidy()
  return result
end

-- entries, notes, forgetting ---------------------------------------------------------------------------------------------

function operations.adjust(o, nodes, specs)
  local text = read('HGET', key.entries, o.id)
  if text then
    local entry = cjson.decode(text)
    if not (same(entry.amounts, o.amounts) and same(entry.keys, keys_of(nodes))) then return other(entry.amounts) end
    return answer('settled', false)
  end
  local accounts, amounts, result = load(nodes), ints(o.amounts), answer('settled', true)
  for i, node in ipairs(nodes) do
    add(accounts[i], 'overrun', most(ZERO, amounts[i]))
    accounts[i].spent = most(ZERO, plus(figure(accounts[i], 'spent'), amounts[i]))
    reached(node, accounts[i], function(mark, sofar) table.insert(result.crossed, { i, mark, sofar }) end)
  end
  forget_at('e:' .. o.id, now() + LATE)
  file(o, nodes, specs, accounts)
  save(accounts)
  write('HSET', key.entries, o.id, cjson.encode({ keys = keys_of(nodes), amounts = o.amounts }))
  return result
end

function operations.forget(o)
  for _, name in ipairs(o.keys) do
    write('ZREM', key.old, 'a:' .. name)
    write('HDEL', key.accounts, name)
    write('HDEL', key.nodes, name)
  end
  return {}
end

local function note(o)
  local text = read('HGET', key.notes, o.key)
  if not text then return nil end
  local ends, value = string.match(text, '^(%-?%d+) (.*)$')
  if ends ~= '0' and not less(int(o.now), int(ends)) then return nil end
  return value
end

function operations.put(o)
  if o.new and note(o) then return { left = false } end
  if o.ends == '0' then
    write('ZREM', key.old, 'n:' .. o.key)
  else
    forget_at('n:' .. o.key, now() + o.keep + DAY)
  end
  write('HSET', key.notes, o.key, o.ends .. ' ' .. o.value)
  return { left = true }
end

function operations.take(o)
  local value = note(o)
  write('ZREM', key.old, 'n:' .. o.key)
  write('HDEL', key.notes, o.key)
  return { text = value }
end

-- one operation ----------------------------------------------------------------------------------------------------------

-- A client counts what it was told. A server that knows of less has lost it; nothing is done on top of that.
-- The answer to an operation that comes twice, because the first answer never arrived, is the first answer.
local function run(keys, args)
  key = {
    accounts = keys[1], nodes = keys[2], reservations = keys[3], due = keys[4],
    entries = keys[5], notes = keys[6], old = keys[7], seen = keys[8],
  }
  wrote, moment = false, nil
  local o = cjson.decode(args[1])
  local slot = score(o.token % SLOTS)
  local seen = read('HMGET', key.seen, 'count', slot)
  local count = tonumber(seen[1] or '0')
  if count < o.count then return cjson.encode({ lost = o.count - count, count = count }) end
  local token = score(o.token) .. ' '
  if seen[2] and string.sub(seen[2], 1, #token) == token then return string.sub(seen[2], #token + 1) end
  local nodes, specs = {}, {}
  for i = 2, #args do
    specs[i - 1] = args[i]
    nodes[i - 1] = cjson.decode(args[i])
  end
  local result = operations[o.what](o, nodes, specs)
  if not wrote then return cjson.encode(result) end
  result.count = count + 1
  if result.count % TIDY_EVERY == 0 then tidy() end
  local text = cjson.encode(result)
  write('HSET', key.seen, 'count', score(result.count), slot, token .. text)
  if count == 0 or o.renew then write('PEXPIRE', key.seen, score(SEEN)) end
  return text
end
