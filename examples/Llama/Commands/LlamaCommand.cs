using System.CommandLine;
using System.Numerics;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A command of the program, with the options common to all commands.</summary>
internal abstract class LlamaCommand : Command
{
    private readonly CommonOptions _common = new();

    /// <summary>Describes a command.</summary>
    protected LlamaCommand(string name, string description)
        : base(name, description)
    {
        _common.AddTo(this);
    }

    /// <summary>Runs the command.</summary>
    /// <param name="arguments">The command line, without errors.</param>
    /// <param name="result">Standard output.</param>
    /// <param name="messages">Standard error.</param>
    /// <param name="showProgress">Whether standard error is a terminal.</param>
    /// <param name="interrupted">Cancelled when the user wants the command to end.</param>
    /// <exception cref="OperationCanceledException">It was ended.</exception>
    public void Run(ParseResult arguments, TextWriter result, TextWriter messages, bool showProgress, CancellationToken interrupted)
    {
        ConsoleOutput output = new(result, messages, _common.WantsJson(arguments), showProgress, interrupted);
        try
        {
            Run(arguments, _common.Read(arguments), output);
        }
        catch
        {
            // The message starts on a new line, wherever the text stopped.
            output.EndLine();
            throw;
        }
    }

    /// <summary>Whether a file configures the cache.</summary>
    protected bool HasCacheFile(ParseResult arguments) => _common.HasCacheFile(arguments);

    /// <summary>Runs the command.</summary>
    protected abstract void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output);

    /// <summary>Adds the command's own options.</summary>
    protected void Add(params IEnumerable<Option> options)
    {
        foreach (Option option in options)
        {
            Options.Add(option);
        }
    }

    /// <summary>Checks cache files before the model is loaded, so that no work is lost.</summary>
    /// <param name="settings">The kind of cache.</param>
    /// <param name="load">The file to continue from, if one is given.</param>
    /// <param name="save">The file to write, if one is given.</param>
    /// <exception cref="CommandException">The cache is dense, which can't be saved, or a file can't be read or written.</exception>
    protected static void CheckFiles(CommonSettings settings, string? load, string? save)
    {
        if (settings.Attention == AttentionKind.Dense && (load ?? save) is not null)
        {
            throw new CommandException("--load and --save: expected a compressed cache, but --attention is dense.");
        }

        if (settings.Options.Eviction is not null && (load ?? save) is not null)
        {
            throw new CommandException("--load and --save: expected a cache that keeps all tokens, but --eviction removes some.");
        }

        Try("--load", load, path => RegularFile.OpenRead(path).Dispose());
        Try("--save", save, MustafarCacheFile.CheckSavePath);
    }

    private static void Try(string option, string? path, Action<string> action)
    {
        if (path is null)
        {
            return;
        }

        if (path.Length == 0)
        {
            throw new CommandException($"{option}: expected the name of a file, but it is empty.");
        }

        try
        {
            action(path);
        }
        catch (Exception exception) when (option == "--load" && exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new CommandException($"{option}: {path}: the file doesn't exist.");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new CommandException($"{option}: {exception.Message}");
        }
    }

    /// <summary>The value of an option, which must be above 0.</summary>
    /// <exception cref="CommandException">It is not.</exception>
    protected static T Positive<T>(ParseResult arguments, Option<T> option)
        where T : struct, INumber<T> => CommandOption.Positive(option.Name, arguments.GetValue(option));
}
