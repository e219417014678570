/// The repository keeps its own rules: reads every source file, script and page.

import FoundationEssentials
import Primitives
import TestSupport
import Testing

@Suite struct TidyTests {
    /// The files that the rules hold for. The rules' own files name what they forbid, and are left out.
    static func files() throws -> [SourceText] {
        var paths = ["Package.swift", "Makefile", ".ci/run", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        for folder in ["Sources", "coordinator", "client", "Tests", "Fuzz", "scripts", "docs", "deploy"] {
            guard let below = try? FileManager.default.subpathsOfDirectory(atPath: "\(Golden.repository)/\(folder)") else {
                continue
            }
            paths += below.sorted().map { "\(folder)/\($0)" }
        }
        return paths.compactMap { path in
            guard !path.hasPrefix("Tests/TidyTests/"), !path.hasPrefix("Tests/Golden/"),
                let data = try? Data(contentsOf: URL(filePath: "\(Golden.repository)/\(path)")), data.count < 1 << 20,
                let text = String(validating: data, as: UTF8.self)
            else { return nil }
            return SourceText(path: path, text)
        }
    }

    @Test func theRepositoryIsTidy() throws {
        let files = try Self.files()
        #expect(files.filter(\.isSwift).count > 50, "the sources were not found below \(Golden.repository)")
        for offence in files.flatMap(TidyRules.check) { Issue.record("\(offence)") }
    }

    @Test func everyPlantedOffenderIsSeen() {
        func offences(_ line: String, in path: String = "Sources/Model/Layer.swift") -> Int {
            TidyRules.check(SourceText(path: path, "// A layer.\n\n\(line)\n")).count
        }
        let offenders = [
            "let x = Float.random(in: 0..<1)", "let y = list.shuffled()", "print(1)", "if a { print(b) }",
            "let z = try! read()", "final class A: @unchecked Sendable {}", "import Foundation", "public import Foundation",
            "// TODO: later", "/// FIXME", "let path = \"/home/someone/model\"", "let path = \"/Users/me\"",
            "var generator = SystemRandomNumberGenerator()",
        ]
        for line in offenders { #expect(offences(line) == 1, "\(line)") }
        let innocents = [
            "let x = Float.random(in: 0..<1, using: &generator)", "// never print( here", "fingerprint(a)", "log.print(a)",
            "// It has a lock.\nfinal class A: @unchecked Sendable {}", "import FoundationEssentials", "let todo = 1",
            "let url = \"https://example.org/home/page\"", "generator.shuffle(&values)", "let mask = \"~/root/x\"",
        ]
        for line in innocents { #expect(offences(line) == 0, "\(line)") }
        #expect(offences("print(1)", in: "client/Program.swift") == 0)
        #expect(offences("import Foundation", in: "Tests/WireTests/A.swift") == 0)
        #expect(TidyRules.check(SourceText(path: "Sources/A.swift", "import Primitives\n")).count == 1)
    }

    @Test func thePageOfExitCodesListsEachOfThem() throws {
        let page = try String(
            decoding: Data(contentsOf: URL(filePath: Golden.repository + "/docs/exit-codes.md")), as: UTF8.self)
        let rows = page.split(separator: "\n").filter { $0.hasPrefix("| ") }
        for status in ExitStatus.allCases {
            let start = "| \(status.rawValue) | `\(status)` |"
            #expect(rows.filter { $0.hasPrefix(start) }.count == 1, "docs/exit-codes.md needs one row that begins with \(start)")
        }
        // Beside the header and 0, nothing that does not exist.
        #expect(rows.filter { $0.firstMatch(of: #/^\| \d+ \|/#) != nil }.count == ExitStatus.allCases.count + 1)
    }

    @Test func theLicenseIsTheOneThatTheReadersExpect() throws {
        let text = try String(decoding: Data(contentsOf: URL(filePath: Golden.repository + "/LICENSE")), as: UTF8.self)
        #expect(text.contains("Apache License") && text.contains("Version 2.0, January 2004"))
        #expect(text.contains("END OF TERMS AND CONDITIONS"))
    }
}
