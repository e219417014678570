/// Where expected values computed by other people's code lie: `TRIBUTARY_GOLDEN`, or the copies in `Tests/Golden`.

import FoundationEssentials

public enum Golden {
    public static let folder: String =
        ProcessInfo.processInfo.environment["TRIBUTARY_GOLDEN"].map { $0.hasPrefix("/") ? $0 : repository + "/" + $0 }
        ?? repository + "/Tests/Golden"

    /// The root of the source tree, from where this file was compiled.
    public static let repository: String = {
        var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
        parts.removeLast(3)
        return parts.joined(separator: "/")
    }()

    /// Of a file or folder; the project's own copy where the other lacks it.
    public static func path(_ relative: String) -> String {
        let path = folder + "/" + relative
        return FileManager.default.fileExists(atPath: path) ? path : repository + "/Tests/Golden/" + relative
    }
}
