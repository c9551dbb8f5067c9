namespace Mustafar.Examples.Llama.Commands;

/// <summary>Standard input.</summary>
/// <param name="reader">Where it is read.</param>
/// <param name="isTerminal">Whether somebody types it, who is to be asked.</param>
/// <param name="showsPrompts">Whether what asks for a line is seen by whoever types: standard output is a terminal too.</param>
internal sealed class CommandInput(TextReader reader, bool isTerminal, bool showsPrompts)
{
    /// <summary>What names standard input in place of a file.</summary>
    public const string Name = "-";

    // Some editors and shells of Windows put it in front of a text.
    private const char ByteOrderMark = '\uFEFF';

    private bool _isBegun;

    /// <summary>Whether a line is asked for on the screen.</summary>
    public bool ShowsPrompts => isTerminal && showsPrompts;

    /// <summary>The next line, or null at the end.</summary>
    /// <param name="interrupted">Ends waiting.</param>
    /// <exception cref="OperationCanceledException">Waiting was ended.</exception>
    public string? ReadLine(CancellationToken interrupted)
    {
        // Reading a terminal can't be cancelled: the thread is left behind.
        Task<string?> line = Task.Run(reader.ReadLine, CancellationToken.None);
        line.WaitAsync(interrupted).GetAwaiter().GetResult();
        return WithoutMark(line.Result);
    }

    /// <summary>A text file, or all of standard input where the name is <see cref="Name"/>.</summary>
    /// <exception cref="CommandException">The file can't be read.</exception>
    public string ReadText(string name) => name == Name ? WithoutMark(reader.ReadToEnd())! : ShippedFiles.ReadText(name);

    /// <summary>All of standard input, or null if it is empty or somebody would have to type it.</summary>
    public string? ReadPiped() => isTerminal || ReadText(Name) is not { Length: > 0 } text ? null : text;

    private string? WithoutMark(string? text)
    {
        bool isFirst = !_isBegun;
        _isBegun = true;
        return isFirst && text is [ByteOrderMark, ..] ? text[1..] : text;
    }
}
