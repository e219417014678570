/// What no source file may hold, as rules over text; `TidyTests` applies them to the repository and plants offenders.

/// One offence.
struct Untidiness: Equatable, CustomStringConvertible {
    let path: String
    /// From 1; 0 means the whole file.
    let line: Int
    let reason: String

    var description: String { "\(path):\(line): \(reason)" }
}

/// A file with its path from the root of the repository.
struct SourceText {
    let path: String
    let lines: [Substring]
    private let bytes: [UInt8]

    init(path: String, _ text: String) {
        self.path = path
        lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        bytes = Array(text.utf8)
    }

    /// True if the word is anywhere in the file: asked before any line is looked at, which is much slower.
    func holds(_ word: String) -> Bool {
        let word = Array(word.utf8)
        guard let first = word.first, bytes.count >= word.count else { return false }
        return bytes.withUnsafeBufferPointer { bytes in
            (0...bytes.count - word.count).contains { start in
                bytes[start] == first && word.indices.allSatisfy { bytes[start + $0] == word[$0] }
            }
        }
    }

    var isSwift: Bool { path.hasSuffix(".swift") }
    /// Libraries never write to standard output; programs and tests do.
    var isLibrary: Bool { path.hasPrefix("Sources/") && !path.hasPrefix("Sources/tributary/") }
    var isTest: Bool { path.hasPrefix("Tests/") }
}

enum TidyRules {
    /// Files outside Tests that need all of Foundation, and why nothing smaller will do.
    static let foundationAllowed: Set<String> = []
    /// Files that draw from the system's generator, because the value is a secret.
    static let systemRandomnessAllowed: Set<String> = [
        "Sources/Privacy/NoiseKey.swift",  // the key of noise that nobody may foretell
        "Sources/ClientCore/ClientFolder.swift",  // a client's secret, by which it is known again
        "coordinator/StartCommand.swift",  // the run's id: two runs never share one
        "coordinator/CoordinatorHost.swift",  // session numbers, which nobody may guess
        "client/ClientHost.swift",  // the process's nonce; waits that keep clients apart
        "client/ProcessChannel.swift",  // waits that keep clients apart
    ]

    static func check(_ file: SourceText) -> [Untidiness] {
        file.isSwift ? swiftRules(file) + textRules(file) : textRules(file)
    }

    private static func swiftRules(_ file: SourceText) -> [Untidiness] {
        var found: [Untidiness] = []
        if file.lines.first?.hasPrefix("//") != true {
            found.append(Untidiness(path: file.path, line: 1, reason: "the first line does not say what the file is"))
        }
        func rule(_ word: String, _ reason: String, where offends: (_ line: Substring, _ index: Int) -> Bool = { _, _ in true }) {
            guard file.holds(word) else { return }
            for (index, line) in file.lines.enumerated()
            where line.contains(word) && !isComment(line) && offends(line, index) {
                found.append(Untidiness(path: file.path, line: index + 1, reason: reason))
            }
        }
        let unseeded = "a random draw without a seeded generator"
        rule(".random(", unseeded) { line, _ in !line.contains("using:") && !line.contains("NoiseKey.random()") }
        for call in [".randomElement()", ".shuffled()", ".shuffle()"] { rule(call, unseeded) }
        if !systemRandomnessAllowed.contains(file.path) {
            rule(
                "SystemRandomNumberGenerator",
                "randomness from the system, in a file that is not on the list of those that need secrets")
        }
        if file.isLibrary { rule("print(", "a library prints") { line, _ in calls("print", in: line) } }
        rule("try!", "try! turns an error into a crash")
        rule("@unchecked Sendable", "@unchecked Sendable without its argument in a comment above") { _, index in
            !hasCommentAbove(file.lines, index)
        }
        if !file.isTest, !foundationAllowed.contains(file.path) {
            rule("import Foundation", "import Foundation where FoundationEssentials may do") { line, _ in
                line.split(separator: " ").last == "Foundation"
            }
        }
        return found
    }

    /// What also holds for scripts, documentation and deployment files.
    private static func textRules(_ file: SourceText) -> [Untidiness] {
        var found: [Untidiness] = []
        func rule(_ words: [String], _ pattern: Regex<Substring>, _ reason: String) {
            guard words.contains(where: file.holds) else { return }
            for (index, line) in file.lines.enumerated() where line.firstMatch(of: pattern) != nil {
                found.append(Untidiness(path: file.path, line: index + 1, reason: reason))
            }
        }
        rule(["TODO", "FIXME"], #/\b(?:TODO|FIXME)\b/#, "unfinished: an issue holds what is left to do")
        rule(
            ["/home/", "/Users/", "/root/"], #/(?:^|[^\w.\/~-])\/(?:home|Users|root)\/\w/#,
            "a path of one machine")
        return found
    }

    private static func isComment(_ line: Substring) -> Bool { line.drop(while: \.isWhitespace).hasPrefix("//") }

    /// A call of a free function of this name: not a method, and not a longer name that ends in it.
    private static func calls(_ function: String, in line: Substring) -> Bool {
        line.ranges(of: function + "(").contains { range in
            guard range.lowerBound > line.startIndex else { return true }
            let before = line[line.index(before: range.lowerBound)]
            return !before.isLetter && !before.isNumber && before != "_" && before != "."
        }
    }

    /// True if the declaration at `index` has a comment right above it, attributes aside, or above the lines of the
    /// declaration that come before.
    private static func hasCommentAbove(_ lines: [Substring], _ index: Int) -> Bool {
        var line = index - 1
        while line >= 0, lines[line].drop(while: \.isWhitespace).hasPrefix("@") { line -= 1 }
        return line >= 0 && isComment(lines[line])
    }
}
