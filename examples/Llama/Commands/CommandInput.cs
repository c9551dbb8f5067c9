namespace Mustafar.Examples.Llama.Commands;

/// <summary>Standard input.</summary>
/// <param name="reader">Where it is read.</param>
/// <param name="isTerminal">Whether it is a terminal, where a user types.</param>
/// <param name="showsPrompts">Whether that user sees prompts: standard output is a terminal too.</param>
internal sealed class CommandInput(TextReader reader, bool isTerminal, bool showsPrompts)
{
    /// <summary>The file name that stands for standard input.</summary>
    public const string Name = "-";

    // Some editors and shells of Windows put it in front of a text.
    private const char ByteOrderMark = '\uFEFF';

    private bool _isBegun;

    /// <summary>Whether to show a prompt for each line.</summary>
    public bool ShowsPrompts => isTerminal && showsPrompts;

    /// <summary>The next line, or null at the end.</summary>
    /// <param name="interrupted">Ends waiting.</param>
    /// <exception cref="OperationCanceledException">Waiting was ended.</exception>
    public string? ReadLine(CancellationToken interrupted)
    {
        // Reading from a terminal can't be cancelled, so the thread is abandoned.
        Task<string?> line = Task.Run(reader.ReadLine, CancellationToken.None);
        line.WaitAsync(interrupted).GetAwaiter().GetResult();
        return WithoutMark(line.Result);
    }

    /// <summary>The content of a text file, or of standard input if the name is <see cref="Name"/>.</summary>
    /// <exception cref="CommandException">The file can't be read.</exception>
    public string ReadText(string name) => name == Name ? WithoutMark(reader.ReadToEnd())! : ShippedFiles.ReadText(name);

    /// <summary>All of standard input; null if it is empty or a terminal.</summary>
    public string? ReadPiped() => isTerminal || ReadText(Name) is not { Length: > 0 } text ? null : text;

    private string? WithoutMark(string? text)
    {
        bool isFirst = !_isBegun;
        _isBegun = true;
        return isFirst && text is [ByteOrderMark, ..] ? text[1..] : text;
    }
}
