using Mustafar.BindingGenerator;
using Mustafar.BindingGenerator.Clang;

return GeneratorCommand.Run(
    header => ClangHeaderReader.Read(ClangTool.FindOnPath(), header), args, Environment.CurrentDirectory, Console.Out, Console.Error);
