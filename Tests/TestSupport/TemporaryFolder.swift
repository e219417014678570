/// A folder of its own for a test, removed with what is in it.

import FoundationEssentials
import Glibc

public final class TemporaryFolder: Sendable {
    public let path: String

    public init() {
        var template = Array("/tmp/tributary-test-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { buffer in
            precondition(mkdtemp(buffer.baseAddress!) != nil, "no temporary folder can be made")
            return String(cString: buffer.baseAddress!)
        }
    }

    public func file(_ name: String) -> String { path + "/" + name }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
    }
}
