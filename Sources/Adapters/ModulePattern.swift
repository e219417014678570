/// A key of PEFT's `rank_pattern` or `alpha_pattern`: a regular expression for the end of a module's path.
///
/// PEFT asks `re.match(rf"(.*\.)?({key})$", path)` (`get_pattern_key`). The file comes from a stranger, and an engine that
/// backtracks can be made to try exponentially many ways through a path. This one follows all ways at once (Thompson 1968,
/// "Regular expression search algorithm"): time is at most the key's length times the path's. It reads what keys are made
/// of: names, `.`, `\d`, `\w`, `\.` and other escaped punctuation, `[...]`, `(...|...)`, `^`, `$`, and `*`, `+`, `?`.

struct ModulePattern: Sendable {
    /// Keys of more bytes are refused; a path has a hundred at most.
    static let longest = 1024

    /// What a key holds that is not read here, as the end of a sentence.
    struct Problem: Error {
        let message: String
    }

    /// A set of characters.
    private struct Class: Sendable {
        var ranges: [ClosedRange<UInt32>] = []
        var hasDigits = false
        var hasWordCharacters = false
        var isNegated = false

        func contains(_ scalar: Unicode.Scalar) -> Bool {
            var isMember = ranges.contains { $0.contains(scalar.value) }
            if hasDigits || hasWordCharacters, !isMember {
                // As Python has them for text: decimal digits, and letters, numbers and the underscore.
                switch scalar.properties.generalCategory {
                case .decimalNumber: isMember = true
                case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .letterNumber,
                    .otherNumber:
                    isMember = hasWordCharacters
                default: isMember = hasWordCharacters && scalar == "_"
                }
            }
            return isMember != isNegated
        }
    }

    /// A step of the program; distances are from this step.
    private enum Step: Sendable {
        case scalar(Unicode.Scalar)
        /// Every character but a line feed.
        case any
        case oneOf(Class)
        case atStart
        case atEnd
        case jump(Int)
        case fork(Int, Int)
    }

    private let program: [Step]
    /// Whether every step takes one character: then there is one place for the key, and no need to follow ways.
    private let isPlain: Bool

    /// - Throws: `Problem` if the key is no such expression, or has parts that are not read here
    init(_ text: String) throws(Problem) {
        guard text.utf8.count <= Self.longest else {
            throw Problem(message: "it is \(text.utf8.count) bytes long, where \(Self.longest) are possible")
        }
        var parser = Parser(scalars: Array(text.unicodeScalars))
        program = try parser.whole()
        isPlain = program.allSatisfy {
            switch $0 {
            case .scalar, .any, .oneOf: true
            default: false
            }
        }
    }

    /// Whether PEFT takes the key for the module with this path.
    func matches(_ path: [Unicode.Scalar]) -> Bool {
        if isPlain {
            let start = path.count - program.count
            guard start >= 0, start == 0 || path[start - 1] == "." else { return false }
            return zip(program, path[start...]).allSatisfy { Self.takes($0, $1) }
        }
        var states = StateSet(count: program.count + 1)
        var next = StateSet(count: program.count + 1)
        for position in 0...path.count {
            // "(.*\.)?": the key may begin at the path's start and behind every dot.
            if position == 0 || path[position - 1] == "." { enter(0, &states, position, of: path.count) }
            guard position < path.count else { break }
            next.removeAll()
            for state in states.members where state < program.count {
                if Self.takes(program[state], path[position]) { enter(state + 1, &next, position + 1, of: path.count) }
            }
            swap(&states, &next)
        }
        return states.contains(program.count)
    }

    /// Adds a step and all that are reached from it without a character; `program.count` is the end.
    private func enter(_ state: Int, _ states: inout StateSet, _ position: Int, of count: Int) {
        states.pending.append(state)
        while let state = states.pending.popLast() {
            guard states.insert(state), state < program.count else { continue }
            switch program[state] {
            case .jump(let distance): states.pending.append(state + distance)
            case .fork(let first, let second):
                states.pending.append(state + first)
                states.pending.append(state + second)
            case .atStart: if position == 0 { states.pending.append(state + 1) }
            case .atEnd: if position == count { states.pending.append(state + 1) }
            case .scalar, .any, .oneOf: break
            }
        }
    }

    private static func takes(_ step: Step, _ scalar: Unicode.Scalar) -> Bool {
        switch step {
        case .scalar(let wanted): wanted == scalar
        case .any: scalar != "\n"
        case .oneOf(let set): set.contains(scalar)
        case .atStart, .atEnd, .jump, .fork: false
        }
    }

    /// Steps that are reached, each once.
    private struct StateSet {
        private var isMember: [Bool]
        private(set) var members: [Int] = []
        /// Steps still to be entered.
        var pending: [Int] = []

        init(count: Int) { isMember = [Bool](repeating: false, count: count) }

        func contains(_ state: Int) -> Bool { isMember[state] }

        /// False if it was there.
        mutating func insert(_ state: Int) -> Bool {
            if isMember[state] { return false }
            isMember[state] = true
            members.append(state)
            return true
        }

        mutating func removeAll() {
            for state in members { isMember[state] = false }
            members.removeAll(keepingCapacity: true)
        }
    }

    /// Recursive descent.
    private struct Parser {
        let scalars: [Unicode.Scalar]
        var position = 0
        /// Groups that are open.
        private var depth = 0
        private static let deepest = 32

        init(scalars: [Unicode.Scalar]) { self.scalars = scalars }

        private var current: Unicode.Scalar? { position < scalars.count ? scalars[position] : nil }

        private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
            guard current == scalar else { return false }
            position += 1
            return true
        }

        mutating func whole() throws(Problem) -> [Step] {
            let steps = try alternatives()
            guard position == scalars.count else { throw Problem(message: "a parenthesis is closed that was not opened") }
            return steps
        }

        private mutating func alternatives() throws(Problem) -> [Step] {
            var branches = [try sequence()]
            while take("|") { branches.append(try sequence()) }
            var steps = branches.removeLast()
            while let branch = branches.popLast() {
                steps = [.fork(1, branch.count + 2)] + branch + [.jump(steps.count + 1)] + steps
            }
            return steps
        }

        private mutating func sequence() throws(Problem) -> [Step] {
            var steps: [Step] = []
            while let scalar = current, scalar != "|", scalar != ")" {
                let isPlace = scalar == "^" || scalar == "$"
                let part = try atom()
                guard let mark = current, mark == "*" || mark == "+" || mark == "?" else {
                    steps += part
                    continue
                }
                guard !isPlace else { throw Problem(message: "there is nothing that \(mark) could repeat") }
                position += 1
                // As few as possible or as many: for a match of the whole it is the same.
                _ = take("?")
                if let second = current, second == "*" || second == "+" || second == "?" {
                    throw Problem(message: "\(second) follows \(mark)")
                }
                switch mark {
                case "*": steps += [.fork(1, part.count + 2)] + part + [.jump(-part.count - 1)]
                case "+": steps += part + [.fork(-part.count, 1)]
                default: steps += [.fork(1, part.count + 1)] + part
                }
            }
            return steps
        }

        private mutating func atom() throws(Problem) -> [Step] {
            let scalar = scalars[position]
            position += 1
            switch scalar {
            case ".": return [.any]
            case "^": return [.atStart]
            case "$": return [.atEnd]
            case "[": return [.oneOf(try characterClass())]
            case "\\":
                var set = Class()
                if let escaped = try escape(into: &set) { return [.scalar(escaped)] }
                return [.oneOf(set)]
            case "(":
                if take("?"), !take(":") { throw Problem(message: "a group that begins with (? is not supported") }
                depth += 1
                guard depth <= Self.deepest else {
                    throw Problem(message: "it has more than \(Self.deepest) groups within another")
                }
                defer { depth -= 1 }
                let steps = try alternatives()
                guard take(")") else { throw Problem(message: "a parenthesis is not closed") }
                return steps
            case "*", "+", "?": throw Problem(message: "there is nothing that \(scalar) could repeat")
            case "{", "}", "]": throw Problem(message: "\(scalar) is not supported outside of [...]")
            default: return [.scalar(scalar)]
            }
        }

        /// Behind a backslash: a character that stands for itself, or nil and a class that is added to `set`.
        private mutating func escape(into set: inout Class) throws(Problem) -> Unicode.Scalar? {
            guard let scalar = current else { throw Problem(message: "it ends with a backslash") }
            position += 1
            switch scalar {
            case "d": set.hasDigits = true
            case "w": set.hasWordCharacters = true
            case _ where scalar.isASCII && !scalar.properties.isAlphabetic && scalar.properties.numericType == nil:
                return scalar
            default: throw Problem(message: "\\\(scalar) is not supported")
            }
            return nil
        }

        /// Behind a bracket.
        private mutating func characterClass() throws(Problem) -> Class {
            var set = Class()
            set.isNegated = take("^")
            var isFirst = true
            while let scalar = current {
                position += 1
                if scalar == "]", !isFirst { return set }
                isFirst = false
                var low = scalar
                if scalar == "\\" {
                    guard let escaped = try escape(into: &set) else { continue }
                    low = escaped
                }
                guard current == "-", position + 1 < scalars.count, scalars[position + 1] != "]" else {
                    set.ranges.append(low.value...low.value)
                    continue
                }
                position += 1
                var high = scalars[position]
                position += 1
                if high == "\\" {
                    guard let escaped = try escape(into: &set) else { throw Problem(message: "a range in [...] has no end") }
                    high = escaped
                }
                guard low.value <= high.value else { throw Problem(message: "the range \(low)-\(high) in [...] runs backwards") }
                set.ranges.append(low.value...high.value)
            }
            throw Problem(message: "a bracket is not closed")
        }
    }
}
