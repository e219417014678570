/// `tributary report`: one page of curves and a table, from the folders of finished or running runs.

import ArgumentParser
import FoundationEssentials
import Primitives
import Programs
import Reports

struct ReportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "report",
        abstract: "Compare runs: one HTML page with curves and a table, from the folders that simulate and coordinator write.",
        discussion: "The page needs no network and no other file. Runs that still go on are shown as far as they are.")

    @Argument(help: ArgumentHelp("Output folders of runs.", valueName: "run-folder"))
    var runs: [String]
    @Option(help: ArgumentHelp("The page to write.", valueName: "file"))
    var output = "report.html"
    @Option(
        parsing: .singleValue,
        help: ArgumentHelp("What to call a run; once for each, in their order. Default: the folders' names.", valueName: "name"))
    var label: [String] = []
    @Flag(help: "Also print the runs as a Markdown table on standard output.")
    var markdown = false
    @Flag(help: "With --markdown: one row for runs that differ in their seeds alone, with the mean and the range.")
    var poolSeeds = false
    @Flag(help: "Print one JSON object on standard output.")
    var json = false

    func run() throws {
        try require(
            label.isEmpty || label.count == runs.count,
            "there are \(label.count) labels for \(runs.count) runs: give --label once for each run, or leave it out")
        try require(!json || !markdown, "--json and --markdown both go to standard output: leave one out")
        try require(!poolSeeds || markdown, "--pool-seeds belongs to --markdown: add that, or leave it out")
        let labels = label.isEmpty ? Self.names(of: runs) : label
        var recorded: [RecordedRun] = []
        for (folder, label) in zip(runs, labels) { recorded.append(try Self.read(folder, label: label)) }
        try FileWriting.replace(output, with: ReportPage(recorded).html)
        let summaries = recorded.map { RunSummary($0) }
        if json {
            Console.json(.object([.init("output", .string(output)), .init("runs", summaries.json())]))
        } else if markdown {
            Console.text(RunTable.markdown(summaries, poolingSeeds: poolSeeds))
        } else {
            Console.line("the report of \(recorded.count) run\(recorded.count == 1 ? "" : "s") is in \(output)")
        }
    }

    private static func read(_ folder: String, label: String) throws(Failure) -> RecordedRun {
        var isFolder = false
        guard FileManager.default.fileExists(atPath: folder, isDirectory: &isFolder), isFolder else {
            throw Failure(
                .missingInput,
                "\(folder) is no folder: name the --output folder of a simulation or of a coordinator")
        }
        for file in ["metrics.jsonl", "run.json"] where !FileManager.default.fileExists(atPath: "\(folder)/\(file)") {
            throw Failure(
                .missingInput,
                "\(folder) has no \(file): name the --output folder of a simulation or of a coordinator, once it has finished a round"
            )
        }
        return try RecordedRun(
            label: label, folder: folder, run: FileReading.bytes(folder + "/run.json"),
            metrics: FileReading.bytes(folder + "/metrics.jsonl"))
    }

    /// The folders' own names, or their paths where two have the same.
    static func names(of folders: [String]) -> [String] {
        let names = folders.map { folder in
            folder.split(separator: "/").last(where: { $0 != "." }).map(String.init) ?? folder
        }
        return zip(folders, names).map { folder, name in
            names.count { $0 == name } == 1 ? name : folder
        }
    }
}
