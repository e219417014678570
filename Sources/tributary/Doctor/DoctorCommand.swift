/// `tributary doctor`: what this machine gives the engine, and what could be better.

import ArgumentParser
import Checkpoints
import FoundationEssentials
import Glibc
import LinearAlgebra
import Primitives
import Programs

struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Look at this machine: kernels, OpenBLAS, cores, memory, disk, and what to do about each.")

    @Flag(help: "Print one JSON object.")
    var json = false
    @Option(help: ArgumentHelp("The folder whose disk is looked at.", valueName: "folder"))
    var folder = "."

    /// One line of the report.
    private struct Finding {
        let name: String
        let value: JSONValue
        let text: String
        /// What to do; nil if all is well.
        let advice: String?
    }

    func run() throws {
        let findings = [try kernels(), openBLAS(), cores(), memory(), disk()]
        if json {
            let advice = findings.compactMap(\.advice).map(JSONValue.string)
            Console.json(
                .object(
                    findings.map { .init($0.name, $0.value) }
                        + [.init("version", .string(Version.current)), .init("advice", .array(advice))]))
            return
        }
        Console.line("tributary \(Version.current)")
        for finding in findings {
            let label = finding.name + String(repeating: " ", count: max(1, 14 - finding.name.count))
            Console.line("\(finding.advice == nil ? "ok  " : "note") \(label)\(finding.text)")
            if let advice = finding.advice { Console.line("     -> \(advice)") }
        }
    }

    private func kernels() throws(Failure) -> Finding {
        let path = try KernelPath.current()
        return Finding(
            name: "kernels", value: .string(path.name), text: "\(path.name) (TRIBUTARY_KERNELS forces another)",
            advice: path.name == "scalar" ? "this CPU has no AVX2: training works, slowly" : nil)
    }

    /// OpenBLAS picks its kernels by CPU family, and falls back to AVX2 ones on a family that it does not know.
    private func openBLAS() -> Finding {
        let core = BLAS.coreName
        let hasAVX512 = KernelPath.supported.contains { $0.name == "avx512" }
        let isSlower =
            hasAVX512 && !["SkylakeX", "Cooperlake", "SapphireRapids", "Zen4"].contains { $0.lowercased() == core.lowercased() }
        let forced = ProcessInfo.processInfo.environment["OPENBLAS_CORETYPE"]
        let advice: String? =
            if !isSlower {
                nil
            } else if let forced {
                "OPENBLAS_CORETYPE=\(forced) is set and makes OpenBLAS use AVX2 on a CPU with AVX-512, at about half the speed: unset it"
            } else {
                "OpenBLAS does not know this CPU and uses AVX2 on a CPU with AVX-512, at about half the speed: try OPENBLAS_CORETYPE=SkylakeX"
            }
        return Finding(
            name: "openblas", value: .string(core),
            text: "core \(core)" + (forced.map { ", from OPENBLAS_CORETYPE=\($0)" } ?? ""),
            advice: advice)
    }

    private func cores() -> Finding {
        let online = Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))
        let used = Parallel.threadCount
        return Finding(
            name: "cores", value: .integer(online), text: "\(online), \(used) used by the engine",
            advice: used < online ? "TRIBUTARY_THREADS=\(used) leaves cores idle: unset it to use all \(online)" : nil)
    }

    private func memory() -> Finding {
        var available = 0
        var total = 0
        let text = FileManager.default.contents(atPath: "/proc/meminfo").map { String(decoding: $0, as: UTF8.self) } ?? ""
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count >= 2, let kibibytes = Int(words[1]) else { continue }
            if words[0] == "MemTotal:" { total = kibibytes * 1024 }
            if words[0] == "MemAvailable:" { available = kibibytes * 1024 }
        }
        return Finding(
            name: "memory",
            value: .object([.init("total_bytes", .integer(total)), .init("available_bytes", .integer(available))]),
            text: "\(Readable.bytes(available)) available of \(Readable.bytes(total))",
            advice: available < 1 << 30
                ? "under 1 GiB is available: close other programs, or train with --quantize nf4 and a small batch" : nil)
    }

    private func disk() -> Finding {
        var status = statvfs()
        let known = statvfs(folder, &status) == 0
        let free = known ? Int(status.f_bavail) * Int(status.f_frsize) : 0
        return Finding(
            name: "disk", value: .object([.init("folder", .string(absolutePath(folder))), .init("free_bytes", .integer(free))]),
            text: "\(Readable.bytes(free)) free in \(absolutePath(folder))",
            advice: !known
                ? "\(folder) cannot be looked at: name a folder that exists with --folder"
                : free < 1 << 30 ? "under 1 GB is free: adapters, state and logs need room" : nil)
    }
}
