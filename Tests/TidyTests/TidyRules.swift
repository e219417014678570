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

    init(path: String, _ text: String) {
        self.path = path
        lines = text.split(separator: "\n", omittingEmptySubsequences: false)
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
        "Sources/ClientCore/ClientFolder.swift"  // a client's secret, by which it is known again
    ]

    static func check(_ file: SourceText) -> [Untidiness] {
        file.isSwift ? swiftRules(file) + textRules(file) : textRules(file)
    }

    private static func swiftRules(_ file: SourceText) -> [Untidiness] {
        var found: [Untidiness] = []
        func report(_ line: Int, _ reason: String) { found.append(Untidiness(path: file.path, line: line, reason: reason)) }
        if file.lines.first?.hasPrefix("//") != true { report(1, "the first line does not say what the file is") }
        for (index, line) in file.lines.enumerated() where !isComment(line) {
            let number = index + 1
            if line.contains(".random(") && !line.contains("using:") { report(number, "a random draw without a seeded generator") }
            for call in [".randomElement()", ".shuffled()", ".shuffle()", ".randomElement(),"] where line.contains(call) {
                report(number, "a random draw without a seeded generator")
                break
            }
            if line.contains("SystemRandomNumberGenerator"), !systemRandomnessAllowed.contains(file.path) {
                report(number, "randomness from the system, in a file that is not on the list of those that need secrets")
            }
            if file.isLibrary, calls("print", in: line) { report(number, "a library prints") }
            if line.contains("try!") { report(number, "try! turns an error into a crash") }
            if line.contains("@unchecked Sendable"), !hasCommentAbove(file.lines, index) {
                report(number, "@unchecked Sendable without its argument in a comment above")
            }
            if line.firstMatch(of: #/^\s*((public|internal|package|private|fileprivate|@\w+(\(.*\))?)\s+)*import Foundation\s*(//.*)?$/#) != nil,
                !file.isTest, !foundationAllowed.contains(file.path)
            {
                report(number, "import Foundation where FoundationEssentials may do")
            }
        }
        return found
    }

    /// What also holds for scripts, documentation and deployment files.
    private static func textRules(_ file: SourceText) -> [Untidiness] {
        var found: [Untidiness] = []
        for (index, line) in file.lines.enumerated() {
            if line.firstMatch(of: #/\b(TODO|FIXME)\b/#) != nil {
                found.append(Untidiness(path: file.path, line: index + 1, reason: "unfinished: an issue holds what is left to do"))
            }
            if line.firstMatch(of: #/(^|[^\w.\/~-])\/(work|wt|home|Users|root)\/\w/#) != nil {
                found.append(Untidiness(path: file.path, line: index + 1, reason: "a path of one machine"))
            }
        }
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
