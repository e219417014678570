/// Words of a command line as a shell reads them, for commands that people are to type or copy.

public enum ShellWord {
    /// The text as one word: itself if it is plain, else between single quotes.
    public static func quoted(_ text: String) -> String {
        let plain = text.utf8.allSatisfy { byte in
            (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte)
                || Array("-_./:,=".utf8).contains(byte)
        }
        return plain && !text.isEmpty
            ? text : "'" + text.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "'\\''") + "'"
    }
}
