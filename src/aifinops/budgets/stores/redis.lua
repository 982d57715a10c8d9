-- Operations of a budget store, each in one step. What they do is told in base.py and accounts.py; this is the same in Lua.
--
-- A server does not take back what a script has written when the script fails. So everything is read, checked and worked out
-- first, and then written with commands that cannot fail; the sorted set, which is not read before, is written first.
--
-- KEYS (all in one slot)
--   accounts      key of a node -> "born spent reserved overrun forfeited fired"
--   nodes         key of a node -> what it says of itself, JSON
--   reservations  id -> "state step expires born held asked actual keys": amounts with commas, keys of nodes as JSON
--   entries       id -> "amounts keys"        notes  key -> "ends text"
--   due           what something happens to, by when: "r:" id, a lease that runs out, or one that is over and may be forgotten as
--                 "e:" id, "a:" key of a node and "n:" key of a note may
--   seen          of one client: how many of its operations wrote, and the last answers to them
-- ARGV
--   "operation token count renew nodes": the client's number for this call, how many writes it knows of
--   for each node four: its key, "limit mark mark ..." (- is no limit), keys of what counts beside it as JSON, what it says of itself
--   what else the operation has
-- The answer is "state applied count more", with JSON at the end where there is more to tell.
-- Amounts are decimal text, moments of leases milliseconds of the server's clock.

local KEPT = 3600 * 1000 -- a reservation that is over is known for so long after its lease
local LATE = 7 * 86400 * 1000 -- the truth about what was forfeited, and what belongs to an old window, may come for so long
local DAY = 86400 * 1000
local SEEN = 8 * DAY -- a client that is silent for longer than six of these days does not expect to be known
local SLOTS = 64 -- answers kept for one client
local SWEEP_MOST, TIDY_MOST, TIDY_EVERY = 100, 256, 64
local MANY = 1000 -- fields in one command: Lua's stack has an end

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

-- A number of Lua is a double, exact up to 2^53, and written out exactly up to 14 digits. What is larger is two of them, the lower
-- one of ten digits: exact up to 10^24. While nothing large has been met in an operation, all are plain numbers.
local BASE, SMALL, EXACT = 1e10, 1e14, 9e15
local large = false

local function halves(a)
  if type(a) == 'table' then return a[1], a[2] end
  local high = math.floor(a / BASE)
  return high, a - high * BASE
end

local function make(high, low)
  large = true
  if low >= BASE then
    high, low = high + 1, low - BASE
  elseif low < 0 then
    high, low = high - 1, low + BASE
  end
  return { high, low }
end

local function int(text)
  if #text <= 14 then return tonumber(text) end
  if string.byte(text) ~= 45 then return make(tonumber(string.sub(text, 1, -11)), tonumber(string.sub(text, -10))) end
  return make(-tonumber(string.sub(text, 2, -11)), -tonumber(string.sub(text, -10)))
end

local function bound(text) -- of a limit or mark, which is only compared
  local number = tonumber(text)
  return number < EXACT and number or int(text)
end

local function plus(a, b)
  if not large then
    local sum = a + b
    if sum < SMALL and sum > -SMALL then return sum end
  end
  local ah, al = halves(a)
  local bh, bl = halves(b)
  return make(ah + bh, al + bl)
end

local function minus(a, b)
  if not large then return plus(a, 0 - b) end -- not -b: zero would become -0
  local ah, al = halves(a)
  local bh, bl = halves(b)
  return make(ah - bh, al - bl)
end

local function less(a, b)
  if not large then return a < b end
  local ah, al = halves(a)
  local bh, bl = halves(b)
  return ah < bh or (ah == bh and al < bl)
end

local function most(a, b) return less(a, b) and b or a end

local function digits(a) -- never of a large negative one: nothing that is kept is below zero
  if type(a) == 'number' and a >= SMALL then return string.format('%.0f', a) end
  if type(a) ~= 'table' then return a end
  if a[1] == 0 then return string.format('%.0f', a[2]) end
  return string.format('%.0f%010.0f', a[1], a[2])
end

local function words(text)
  local found = {}
  for word in string.gmatch(text, '[^,]+') do found[#found + 1] = word end
  return found
end

-- the server -------------------------------------------------------------------------------------------------------------

local function read(...) return redis.call(...) end

local function write(...)
  wrote = true
  return redis.call(...)
end

local function read_fields(where, fields)
  if #fields == 0 then return {} end
  if #fields <= MANY then return read('HMGET', where, unpack(fields)) end
  local values = {}
  for from = 1, #fields, MANY do
    local some = read('HMGET', where, unpack(fields, from, math.min(from + MANY - 1, #fields)))
    for i = 1, #some do values[from + i - 1] = some[i] end
  end
  return values
end

local function write_fields(where, flat)
  for from = 1, #flat, MANY do write('HSET', where, unpack(flat, from, math.min(from + MANY - 1, #flat))) end
end

local function now()
  if not moment then
    local time = read('TIME')
    moment = { ms = time[1] * 1000 + math.floor(time[2] / 1000), text = time[1] .. string.format('%06d', time[2]) }
  end
  return moment.ms
end

local function at(ms, what) write('ZADD', key.due, string.format('%.0f', ms), what) end

local function due(limit)
  return read('ZRANGEBYSCORE', key.due, '-inf', string.format('%.0f', now()), 'LIMIT', 0, limit)
end

-- accounts ---------------------------------------------------------------------------------------------------------------

-- An account is its figures in the order in which they are kept, with its key, its text and what counts beside it.
local BORN, SPENT, RESERVED, OVERRUN, FORFEITED, FIRED = 1, 2, 3, 4, 5, 6
local NONE = {}

-- Figures are text until they are needed: of the parts of a rolling window most are not.
local function figure(account, which)
  local value = account[which]
  if type(value) == 'string' then
    value = int(value)
    account[which] = value
  end
  return value
end

local function add(account, which, amount) account[which] = plus(figure(account, which), amount) end

local function sum(account, which)
  local value = figure(account, which)
  if account.beside == NONE then return value end
  for _, other in ipairs(account.beside) do value = plus(value, figure(other, which)) end
  return value
end

local function packed(account)
  if large then
    for i = SPENT, FIRED do account[i] = digits(account[i]) end
  end
  return table.concat(account, ' ', BORN, FIRED)
end

local function unpacked(name, text)
  local born, spent, reserved, overrun, forfeited, fired = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return { born, spent, reserved, overrun, forfeited, fired, key = name, text = text, beside = NONE }
end

-- Without a key it is kept nowhere: in the place of an account that was forgotten.
local function empty(name) return { '0', '0', '0', '0', '0', '0', key = name, beside = NONE } end

-- The accounts of nodes, with what counts beside them.
local function load(nodes)
  local names = {}
  for i, node in ipairs(nodes) do names[i] = node.key end
  for _, node in ipairs(nodes) do
    for _, other in ipairs(node.also) do names[#names + 1] = other end
  end
  local texts, found = read_fields(key.accounts, names), {}
  for i, name in ipairs(names) do
    if texts[i] and not found[name] then found[name] = unpacked(name, texts[i]) end
  end
  local accounts = {}
  for i, node in ipairs(nodes) do
    local account = found[node.key] or empty(node.key)
    if node.also ~= NONE then
      account.beside = {}
      for _, other in ipairs(node.also) do account.beside[#account.beside + 1] = found[other] end
    end
    accounts[i] = account
  end
  return accounts
end

-- Those of a reservation: an account that was forgotten meanwhile, and made again, is not the one that it knew.
local function load_for(record, nodes)
  local accounts, born = load(nodes), words(record.born)
  for i, account in ipairs(accounts) do
    if account[BORN] ~= born[i] then
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
        flat[#flat + 1] = account.key
        flat[#flat + 1] = text
      end
    end
  end
  write_fields(key.accounts, flat)
end

-- Accounts that are new begin here, and what nodes say of themselves is renewed.
local function file(nodes, accounts, keeps)
  local names, flat = {}, {}
  for i, node in ipairs(nodes) do names[i] = node.key end
  local known = read_fields(key.nodes, names)
  for i, node in ipairs(nodes) do
    if not accounts[i].text then
      now()
      accounts[i][BORN] = moment.text
      if keeps[i] ~= '0' then at(now() + tonumber(keeps[i]) + LATE, 'a:' .. node.key) end
    end
    if known[i] ~= node.spec then
      flat[#flat + 1] = node.key
      flat[#flat + 1] = node.spec
    end
  end
  write_fields(key.nodes, flat)
end

-- What the caller needs to tell why there was no room; nothing when there is.
local function refused(nodes, accounts, amounts)
  local full = false
  for i, node in ipairs(nodes) do
    if node.limit ~= '-' and less(0, amounts[i]) then
      local taken = plus(sum(accounts[i], SPENT), sum(accounts[i], RESERVED))
      full = full or less(bound(node.limit), plus(taken, amounts[i]))
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
  if node.marks == '' then return end
  local spent = sum(account, SPENT)
  if less(spent, bound(string.match(node.marks, '^%d+'))) then return end
  local fired = figure(account, FIRED)
  for _, other in ipairs(account.beside) do fired = most(fired, figure(other, FIRED)) end
  if not less(fired, spent) then return end
  for text in string.gmatch(node.marks, '%d+') do
    local mark = bound(text)
    if less(spent, mark) then return end
    if less(fired, mark) then
      tell(text, tostring(digits(spent)))
      account[FIRED] = mark
    end
  end
end

-- reservations -----------------------------------------------------------------------------------------------------------

local function ints(text)
  local numbers = words(text)
  for i, word in ipairs(numbers) do numbers[i] = int(word) end
  return numbers
end

local function answer(state, applied, more) return { state = state or 'none', applied = applied, more = more } end

local function other(amounts) return answer('none', false, { other = amounts }) end

local function find(id)
  local text = read('HGET', key.reservations, id)
  if not text then return nil end
  local record = {}
  record.state, record.step, record.expires, record.born, record.held, record.asked, record.actual, record.keys =
    string.match(text, '^(%S+) (%S+) (%S+) (%S*) (%S*) (%S*) (%S*) (.*)$')
  return record
end

local function keep(id, record)
  local text = table.concat({
    record.state, record.step, record.expires, record.born, record.held, record.asked, record.actual, record.keys,
  }, ' ')
  write('HSET', key.reservations, id, text)
end

local function lease(id, record, ttl)
  local expires = now() + tonumber(ttl)
  record.expires = string.format('%.0f', expires)
  at(expires, 'r:' .. id)
end

local function over(id, record, known) at(tonumber(record.expires) + known, 'r:' .. id) end

local function move(record, event)
  local before = record.state
  record.state = MOVES[event][before] or before
  return MOVES[event][before] ~= nil, before
end

-- What was forfeited is a hold again: its holder has come back with the truth.
local function revive(accounts, holds)
  for i, account in ipairs(accounts) do
    add(account, RESERVED, holds[i])
    add(account, FORFEITED, minus(0, holds[i]))
    -- A credit may have taken part of it out already: spent never falls below zero.
    account[SPENT] = most(0, minus(figure(account, SPENT), holds[i]))
  end
end

-- Holds become costs; the marks that are reached.
local function pay(nodes, accounts, holds, costs)
  local crossed = nil
  for i, account in ipairs(accounts) do
    add(account, RESERVED, minus(0, holds[i]))
    add(account, SPENT, costs[i])
    if less(holds[i], costs[i]) then add(account, OVERRUN, minus(costs[i], holds[i])) end
    reached(nodes[i], account, function(mark, spent)
      crossed = crossed or {}
      table.insert(crossed, { i, mark, spent })
    end)
  end
  return crossed
end

local operations = {}

-- id, keys, amounts, ttl, keeps
function operations.reserve(nodes, id, keys, asked, ttl, keeps)
  local record = find(id)
  if record then
    if record.asked ~= asked or record.keys ~= keys then return other(record.asked) end
    return answer(record.state, false)
  end
  local accounts, amounts = load(nodes), ints(asked)
  local figures = refused(nodes, accounts, amounts)
  if figures then
    file(nodes, accounts, words(keeps))
    save(accounts)
    return answer(nil, false, { figures = figures })
  end
  record = { state = 'held', step = '0', held = asked, asked = asked, actual = '', keys = keys }
  lease(id, record, ttl)
  file(nodes, accounts, words(keeps))
  local born = {}
  for i, account in ipairs(accounts) do
    add(account, RESERVED, amounts[i])
    born[i] = account[BORN]
  end
  record.born = table.concat(born, ',')
  save(accounts)
  keep(id, record)
  return answer('held', true)
end

function operations.mark_sent(nodes, id)
  local record = find(id)
  if not record then return answer(nil, false) end
  local applied = move(record, 'mark_sent')
  if applied then keep(id, record) end
  return answer(record.state, applied)
end

-- amounts: - where the truth is unknown
function operations.settle(nodes, id, keys, amounts)
  local record = find(id)
  if not record then return answer(nil, false) end
  if record.keys ~= keys then return other(record.held) end
  local actual = amounts
  if string.find(amounts, '-', 1, true) then
    local held, known = words(record.held), words(amounts)
    for i, amount in ipairs(known) do
      if amount == '-' then known[i] = held[i] end
    end
    actual = table.concat(known, ',')
  end
  if record.state == 'settled' and record.actual ~= actual then return other(record.actual) end
  local applied, before = move(record, 'settle')
  if not applied then return answer(record.state, false) end
  local accounts, holds = load_for(record, nodes), ints(record.held)
  if before == 'forfeited' then revive(accounts, holds) end
  local crossed = pay(nodes, accounts, holds, ints(actual))
  record.actual = actual
  over(id, record, before == 'forfeited' and LATE or KEPT)
  save(accounts)
  keep(id, record)
  return answer('settled', true, crossed and { crossed = crossed })
end

function operations.release(nodes, id, keys)
  local record = find(id)
  if not record then return answer(nil, false) end
  if record.keys ~= keys then return other(record.held) end
  local applied, before = move(record, 'release')
  if not applied then return answer(record.state, false) end
  local accounts, holds = load_for(record, nodes), ints(record.held)
  if before == 'forfeited' then revive(accounts, holds) end
  for i, account in ipairs(accounts) do add(account, RESERVED, minus(0, holds[i])) end
  over(id, record, before == 'forfeited' and LATE or KEPT)
  save(accounts)
  keep(id, record)
  return answer('released', true)
end

-- wanted: - leaves the hold
function operations.extend(nodes, id, keys, ttl, wanted)
  local record = find(id)
  if not record then return answer(nil, false) end
  if record.keys ~= keys then return other(record.held) end
  if not move(record, 'extend') then return answer(record.state, false) end
  if wanted ~= '-' then
    local accounts, growth, holds = load_for(record, nodes), ints(wanted), ints(record.held)
    for i, amount in ipairs(growth) do growth[i] = minus(amount, holds[i]) end
    local figures = refused(nodes, accounts, growth)
    if figures then return answer(record.state, false, { figures = figures, held = record.held }) end
    lease(id, record, ttl)
    for i, account in ipairs(accounts) do add(account, RESERVED, growth[i]) end
    record.held = wanted
    save(accounts)
  else
    lease(id, record, ttl)
  end
  keep(id, record)
  return answer(record.state, true)
end

function operations.draw(nodes, id, keys, ttl, step, spent, wanted, least)
  local record = find(id)
  if not record then return answer(nil, false) end
  if record.keys ~= keys then return other(record.held) end
  if not MOVES.draw[record.state] or not less(int(record.step), int(step)) then return answer(record.state, false) end
  local accounts = load_for(record, nodes)
  local crossed = pay(nodes, accounts, ints(record.held), ints(spent))
  local figures = refused(nodes, accounts, ints(wanted))
  record.held, record.step = figures and least or wanted, step
  for i, amount in ipairs(ints(record.held)) do add(accounts[i], RESERVED, amount) end
  lease(id, record, ttl)
  save(accounts)
  keep(id, record)
  return answer(record.state, true, (crossed or figures) and { crossed = crossed, figures = figures })
end

-- what is due ------------------------------------------------------------------------------------------------------------

local function node_of(name, rule, also, spec)
  local limit, marks = string.match(rule, '^(%S+) ?(.*)$')
  return { key = name, limit = limit, marks = marks, also = also == '' and NONE or cjson.decode(also), spec = spec }
end

-- As the last operation had them.
local function nodes_of(record)
  local names, nodes = cjson.decode(record.keys), {}
  local specs = read_fields(key.nodes, names)
  for i, name in ipairs(names) do
    local spec = specs[i] and cjson.decode(specs[i]) or { marks = {}, also = {} }
    nodes[i] = { key = name, marks = table.concat(spec.marks, ' '), also = spec.also, spec = specs[i] }
  end
  return nodes
end

local function forfeit(id, record, crossed)
  local nodes = nodes_of(record)
  local accounts = load_for(record, nodes)
  for i, held in ipairs(ints(record.held)) do
    local account = accounts[i]
    add(account, RESERVED, minus(0, held))
    add(account, FORFEITED, held)
    add(account, SPENT, held)
    reached(nodes[i], account, function(mark, spent) table.insert(crossed, { nodes[i].spec, mark, spent }) end)
  end
  over(id, record, LATE)
  save(accounts)
  keep(id, record)
end

-- Whether it is gone for good.
local function forget(kind, name)
  if kind == 'a' then
    local account = load({ { key = name, also = NONE } })[1]
    if less(0, figure(account, RESERVED)) then
      at(now() + DAY, 'a:' .. name)
      return false
    end
    write('HDEL', key.accounts, name)
    write('HDEL', key.nodes, name)
  elseif kind == 'e' then
    write('HDEL', key.entries, name)
  elseif kind == 'n' then
    write('HDEL', key.notes, name)
  else
    write('HDEL', key.reservations, name)
  end
  return true
end

-- Forgets what may be forgotten; the ids of leases that have run out, and whether there may be more of either.
local function tidy(limit)
  local found, late = due(limit), {}
  for _, what in ipairs(found) do
    local kind, name = string.sub(what, 1, 1), string.sub(what, 3)
    local record = kind == 'r' and find(name)
    if record and MOVES.expire[record.state] then
      late[#late + 1] = name
    elseif forget(kind, name) then
      write('ZREM', key.due, what)
    end
  end
  return late, #found == limit
end

function operations.sweep()
  local crossed = {}
  local late, more = tidy(SWEEP_MOST)
  table.sort(late)
  for _, id in ipairs(late) do
    local record = find(id)
    move(record, 'expire')
    forfeit(id, record, crossed)
  end
  return answer(nil, more, { swept = late, crossed = crossed })
end

-- entries, notes, forgetting ---------------------------------------------------------------------------------------------

function operations.adjust(nodes, id, keys, amounts, keeps)
  local text, entry = read('HGET', key.entries, id), amounts .. ' ' .. keys
  if text == entry then return answer('settled', false) end
  if text then return other(string.match(text, '^%S*')) end
  local accounts, crossed = load(nodes), {}
  for i, amount in ipairs(ints(amounts)) do
    local account = accounts[i]
    add(account, OVERRUN, most(0, amount))
    account[SPENT] = most(0, plus(figure(account, SPENT), amount))
    reached(nodes[i], account, function(mark, spent) table.insert(crossed, { i, mark, spent }) end)
  end
  at(now() + LATE, 'e:' .. id)
  file(nodes, accounts, words(keeps))
  save(accounts)
  write('HSET', key.entries, id, entry)
  return answer('settled', true, { crossed = crossed })
end

function operations.forget(nodes)
  for _, node in ipairs(nodes) do
    write('ZREM', key.due, 'a:' .. node.key)
    write('HDEL', key.accounts, node.key)
    write('HDEL', key.nodes, node.key)
  end
  return answer(nil, true)
end

local function note(name, moment_of_caller)
  local text = read('HGET', key.notes, name)
  if not text then return nil end
  local ends, value = string.match(text, '^(%S+) (.*)$')
  if ends ~= '0' and not less(int(moment_of_caller), int(ends)) then return nil end
  return value
end

function operations.put(nodes, name, moment_of_caller, value, ends, keeps, new)
  if new == '1' and note(name, moment_of_caller) then return answer(nil, false) end
  if ends == '0' then
    write('ZREM', key.due, 'n:' .. name)
  else
    at(now() + tonumber(keeps) + DAY, 'n:' .. name)
  end
  write('HSET', key.notes, name, ends .. ' ' .. value)
  return answer(nil, true)
end

function operations.take(nodes, name, moment_of_caller)
  local value = note(name, moment_of_caller)
  write('ZREM', key.due, 'n:' .. name)
  write('HDEL', key.notes, name)
  return answer(nil, value ~= nil, { text = value })
end

-- one operation ----------------------------------------------------------------------------------------------------------

local function run(keys, args)
  key = {
    accounts = keys[1], nodes = keys[2], reservations = keys[3], due = keys[4], entries = keys[5], notes = keys[6], seen = keys[7],
  }
  wrote, moment, large = false, nil, false
  local what, token, known, renew, size = string.match(args[1], '^(%S+) (%d+) (%d+) (%d) (%d+)$')
  local slot = tostring(token % SLOTS)
  local seen = read('HMGET', key.seen, 'count', slot)
  local count = tonumber(seen[1] or '0')
  -- A client counts what it was told. A server that knows of less has lost it; nothing is done on top of that.
  if count < tonumber(known) then return string.format('lost 0 %d ', count) end
  -- What comes twice, because the answer never arrived, gets the answer that it had.
  token = token .. ':'
  if seen[2] and string.sub(seen[2], 1, #token) == token then return string.sub(seen[2], #token + 1) end
  local nodes = {}
  for i = 1, tonumber(size) do
    local from = 4 * i - 2
    nodes[i] = node_of(args[from], args[from + 1], args[from + 2], args[from + 3])
  end
  local result = operations[what](nodes, unpack(args, 4 * size + 2))
  if wrote then
    count = count + 1
    if count % TIDY_EVERY == 0 then tidy(TIDY_MOST) end
  end
  local more = result.more and cjson.encode(result.more) or ''
  local text = string.format('%s %d %d ', result.state, result.applied and 1 or 0, count) .. more
  if wrote then
    write('HSET', key.seen, 'count', tostring(count), slot, token .. text)
    if count == 1 or renew == '1' then write('PEXPIRE', key.seen, string.format('%.0f', SEEN)) end
  end
  return text
end
